"""FedAvg (McMahan et al. 2017), with FedProx's local term and adaptive server optimisers."""

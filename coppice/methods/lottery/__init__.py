"""Lottery-ticket checks (Frankle and Carbin 2019): a pruned model's masks, trained anew."""

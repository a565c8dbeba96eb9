"""The methods: a folder here is a method (`coppice.method` says what that is)."""

"""Many soft prompts on one frozen model: pools, ensembles, and transfer from device to device."""

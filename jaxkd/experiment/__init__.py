"""From a config to finished runs: networks, phases, sweeps, dry runs."""

"""The machine: devices, processes, signals, locks, compiled programs."""

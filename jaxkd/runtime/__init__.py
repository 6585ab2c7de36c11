"""The machine: devices, mapped steps, processes, signals, memory, compiled programs."""

"""What models cost on a machine: loading, reading, writing, beside its ceilings."""

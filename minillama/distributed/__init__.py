"""Several processes: what fits where, tensor parallel, FSDP, and the ranks of a command."""

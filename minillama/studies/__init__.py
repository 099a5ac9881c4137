"""What the experiments are made of; nothing else in the package imports it, but the commands do."""

"""A small PyTorch network, trained in a federation."""

"""mri_synth: train, compare and use generative models of MRI (PyTorch Lightning + Hydra)."""

__version__ = "0.1.0"

"""fl-app: federated training of PyTorch image classifiers with Flower."""

__version__ = "0.1.0"

"""HanStack in packages that people train and ship models with: `make clients`."""

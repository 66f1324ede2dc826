"""What all wrappers are made of: config, observers, points, the module, the registry."""

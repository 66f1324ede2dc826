"""Inside what is compiled: at which stage it goes wrong, in which modules, at which node."""

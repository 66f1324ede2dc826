"""What is deployed as a side: exported graphs become trees of modules that run under hooks.

`graph` holds the tree and what an engine of a format has to do, `calls` finds the calls of modules
in a graph's operations, `exported` reads programs of `torch.export` and `torch.fx`, `lines` says
where their nodes were written, and `opening` opens a file by its suffix.
"""

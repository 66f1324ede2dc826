"""What is deployed as a side: exported graphs become trees of modules that run under hooks.

`graph` holds the tree and what an engine of a format has to do, `calls` finds the calls of modules
in a graph's operations, `nodes` and `exported` read programs of `torch.export` and graphs of
`torch.fx`, `inputs` fits arguments to them, `lines` says where nodes were written, and `opening`
opens a file by its suffix.
"""

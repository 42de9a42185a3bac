"""Plug-ins that accelerate the HRNets of other packages from their own configuration; one module for each package.

Nothing is imported here: ``import hrnet_fast.integrations.timm`` needs timm, and nothing else does.
"""

"""The larger model that unsure gateways may ask, over HTTP."""

"""The cloud side: today the larger model that unsure gateways may ask."""

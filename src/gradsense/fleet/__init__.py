"""Who belongs to a fleet: certificates, registry, broker configuration, device bundles, jobs."""

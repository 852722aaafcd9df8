"""Who belongs to a fleet: certificates, access, and what a device is given."""

"""Makes sandboxes on this machine from Linux namespaces: tier `namespace`."""

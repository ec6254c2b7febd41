"""The Workload Manager: sessions, templates, pools, collection. It decides nothing that model does not."""

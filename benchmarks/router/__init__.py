"""The Router beside other proxies that do the same work, in one run."""

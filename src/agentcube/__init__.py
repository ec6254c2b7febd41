"""AgentCube: sandboxed sessions for AI agents. The public SDK names, imported when first used."""

"""Looking at a cluster before it is trusted with work: probes on every node, and judgements of what they found."""

"""The same bundles in BentoML: a service with its native API and our v2 REST door, as a project, as a Bento."""

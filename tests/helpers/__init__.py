"""What several tests share: tiny runs, planted studies, small models, photographs."""

"""All that touches somebody's ``nn.Module``: isolation, capture, recording, maps, parameter units and rules."""

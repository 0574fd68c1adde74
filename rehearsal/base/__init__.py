"""What the stand-ins share: settings, faults, HTTP, links, console."""

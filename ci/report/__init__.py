"""What people read of a run: HTML, JUnit, annotations, the live view."""

"""Record: every anomaly counted, journaled and followed to its outcome."""

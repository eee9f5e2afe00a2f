"""Learning rates from the best one to 300 times as much, against methods: how much worse each ends."""

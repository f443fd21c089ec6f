"""What is done with a trained policy: play it, film it, write it to one small file and load that."""

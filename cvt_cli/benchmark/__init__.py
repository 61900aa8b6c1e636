"""How fast the network and the whole run are on this machine, beside what else there is."""

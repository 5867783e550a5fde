"""What the subcommands of ``cryonb`` do with files, from one stack to many shards."""

package supervisor

func play(role string) int { return 2 }

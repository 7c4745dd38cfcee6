package serverless

import "time"

// SetPauses shortens the pauses for tests.
func (s *Serverless) SetPauses(sweep time.Duration) { s.pool.sweep = sweep }

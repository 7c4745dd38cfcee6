package serverless

import "time"

// SetPauses sets the pauses for tests, and lets no other time run out by itself.
func (s *Serverless) SetPauses(sweep, fresh time.Duration) {
	s.pool.sweep, s.pool.fresh = sweep, fresh
	s.pool.check, s.pool.alone = time.Hour, time.Hour
}

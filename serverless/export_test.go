package serverless

import "time"

// SetPauses shortens the pauses for tests.
func (s *Serverless) SetPauses(sweep, fresh time.Duration) { s.pool.sweep, s.pool.fresh = sweep, fresh }

package appconfig

func (c *Config) validate() Problems { return nil }

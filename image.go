package roost

// Image is a resolved image reference.
type Image struct {
	Registry   string // "docker.io"
	Repository string // "library/debian"
	Tag        string // "bookworm-slim", may be empty
	Digest     Digest
	Labels     map[string]string
}

// Ref returns "registry/repository:tag@digest".
func (i Image) Ref() string {
	s := i.Registry + "/" + i.Repository
	if i.Tag != "" {
		s += ":" + i.Tag
	}
	if i.Digest != "" {
		s += "@" + string(i.Digest)
	}
	return s
}

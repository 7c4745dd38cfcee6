package client

import "context"

// Authority is the local certificate authority, which issues for private names.
type Authority struct {
	Certificate string `json:"certificate"` // PEM
}

// Authority returns the local certificate authority.
func (c *Client) Authority(ctx context.Context) (Authority, error) {
	return get[Authority](ctx, c, prefix+"/ca")
}

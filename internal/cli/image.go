package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/roost-run/roost/internal/client"
)

func newImageCmd(f *factory) *cobra.Command {
	return group("image", "Images on the host", []string{"images"}, newImageListCmd(f), newImagePullCmd(f), newImageLoadCmd(f), newImageBuildCmd(f), newImageRemoveCmd(f))
}

func newImageListCmd(f *factory) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List images", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			images, err := c.Images(cmd.Context())
			if err != nil {
				return err
			}
			return printList(f, asJSON, images, "No images yet; `roost image build`, `load` and `pull` get them",
				[]string{"image", "digest", "size", "created", ""}, func(i client.Image) []string {
					name, _, _ := strings.Cut(i.Ref, "@")
					used := ""
					if i.InUse {
						used = "in use"
					}
					digest := i.Digest
					if f.io.OutTTY && len(digest) > shortDigest {
						digest = digest[:shortDigest]
					}
					return []string{name, digest, fmt.Sprintf("%.1f MB", mb(i.Size)), f.io.Time(i.CreatedAt), used}
				})
		},
	}
	return jsonFlag(cmd, &asJSON)
}

// shortDigest is "sha256:" and as much as a person compares.
const shortDigest = 19

// printImage prints an image that a command made or fetched.
func (f *factory) printImage(i client.Image, asJSON bool) error {
	if asJSON {
		return f.io.JSON(i)
	}
	f.io.Printf("%s\n", i.Ref)
	return nil
}

func newImagePullCmd(f *factory) *cobra.Command {
	var asJSON bool
	var user, passwordFile string
	cmd := &cobra.Command{
		Use: "pull REFERENCE", Short: "Fetch an image from its registry", Args: cobra.ExactArgs(1),
		Long: `Fetch an image from its registry, or from a mirror that the server's
configuration names for it. Credentials given here are used this once; those
that deploys need again belong into [[registries]] of that configuration.`,
		Example: "  roost image pull docker.io/library/redis:7\n  roost image pull ghcr.io/me/shop:2 --username me --password-file token.txt",
		RunE: func(cmd *cobra.Command, args []string) error {
			login := client.RegistryLogin{User: user}
			if (user == "") != (passwordFile == "") {
				return usageError{errors.New("--username and --password-file belong together")}
			}
			if user != "" {
				password, err := f.readFile(passwordFile)
				if err != nil {
					return usageError{err}
				}
				login.Password = strings.TrimSpace(string(password))
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			last := ""
			image, err := c.PullImage(cmd.Context(), args[0], login, func(p client.Progress) {
				if p.State != last && p.Layer == "" {
					last = p.State
					f.io.Notef("%s: %s", args[0], p.State)
				}
			})
			if err != nil {
				return err
			}
			return f.printImage(image, asJSON)
		},
	}
	cmd.Flags().StringVar(&user, "username", "", "who pulls")
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "file with the password or token; - is standard input")
	return jsonFlag(cmd, &asJSON)
}

// readFile reads a file; - is standard input.
func (f *factory) readFile(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(f.io.In)
	}
	return os.ReadFile(name)
}

func newImageLoadCmd(f *factory) *cobra.Command {
	var asJSON bool
	var as string
	cmd := &cobra.Command{
		Use: "load FILE", Short: "Load images from an OCI or docker archive; - is standard input", Args: cobra.ExactArgs(1), Example: "  docker save shop | roost image load -",
		RunE: func(cmd *cobra.Command, args []string) error {
			archive := f.io.In
			if args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return usageError{err}
				}
				defer file.Close()
				archive = file
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			images, err := c.LoadImage(cmd.Context(), archive, as)
			if err != nil {
				return err
			}
			if asJSON {
				return f.io.JSON(images)
			}
			for _, i := range images {
				if err := f.printImage(i, false); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&as, "as", "", "name it so, whatever the archive says")
	return jsonFlag(cmd, &asJSON)
}

func newImageRemoveCmd(f *factory) *cobra.Command {
	return &cobra.Command{
		Use: "remove REFERENCE...", Aliases: []string{"rm"}, Short: "Forget images", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			for _, ref := range refs {
				if err := c.RemoveImage(cmd.Context(), ref); err != nil {
					return err
				}
				f.io.Notef("Image %s removed", ref)
			}
			return nil
		},
	}
}

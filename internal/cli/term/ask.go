package term

import (
	"context"
	"errors"
	"os"

	"charm.land/huh/v2"
)

// CanAsk reports whether there is a person who sees a question and can answer.
func (t *IO) CanAsk() bool { return t.InTTY && t.ErrTTY }

// Ask asks for a line; value is what it suggests, and the answer without a
// terminal. valid may be nil. A person who gives up ends it with
// context.Canceled.
func (t *IO) Ask(ctx context.Context, question, value string, valid func(string) error) (string, error) {
	if !t.CanAsk() {
		return value, nil
	}
	answer := value
	field := huh.NewInput().Title(question).Value(&answer)
	if valid != nil {
		field.Validate(valid)
	}
	err := huh.NewForm(huh.NewGroup(field)).WithInput(t.In).WithOutput(t.Err).WithShowHelp(false).WithAccessible(t.plain()).RunWithContext(ctx)
	if errors.Is(err, huh.ErrUserAborted) {
		err = context.Canceled
	}
	return answer, err
}

// plain: no redrawing where it would not be understood.
func (t *IO) plain() bool {
	_, file := t.In.(*os.File)
	return !file || os.Getenv("TERM") == "dumb" || os.Getenv("ACCESSIBLE") != ""
}

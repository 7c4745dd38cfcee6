package term

import (
	"os"
	"slices"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// columnGap is what stands between two columns of a table.
	columnGap = 2
	// narrowCell is how far a column is cut before it is left out: names and
	// references are recognised by so much.
	narrowCell = 16
)

// columns is how wide the answer may be; 0 is not known.
func (t *IO) columns() int {
	if t.Columns > 0 {
		return t.Columns
	}
	f, ok := t.Out.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// fit makes a table as narrow as the terminal: cells are cut, then the widest
// columns left out, those on the right first. The first column, which names the
// row, stays whole. It returns the names of what was left out.
func fit(header []string, rows [][]string, columns int) (cut [][]string, left []string) {
	table := append([][]string{slices.Clone(header)}, rows...)
	for i := range rows {
		table[i+1] = slices.Clone(rows[i])
	}
	widths := make([]int, len(header))
	total := -columnGap
	for c := range header {
		for _, row := range table {
			widths[c] = max(widths[c], utf8.RuneCountInString(row[c]))
		}
		total += widths[c] + columnGap
	}
	if columns <= 0 || total <= columns {
		return table, nil
	}
	for c := range widths { // cut no further than needed, the widest first
		if c > 0 && widths[c] > narrowCell {
			total -= widths[c] - narrowCell
			widths[c] = narrowCell
		}
	}
	for total > columns && len(widths) > 1 {
		widest := 1
		for c := range widths {
			if c > 0 && widths[c] >= widths[widest] {
				widest = c
			}
		}
		left = append(left, table[0][widest])
		total -= widths[widest] + columnGap
		widths = slices.Delete(widths, widest, widest+1)
		for i := range table {
			table[i] = slices.Delete(table[i], widest, widest+1)
		}
	}
	// What room is left goes to the columns that were cut, from the left.
	for c := range widths {
		if c == 0 || widths[c] < narrowCell {
			continue
		}
		room := columns - total
		widths[c] += room
		longest := 0
		for _, row := range table {
			longest = max(longest, utf8.RuneCountInString(row[c]))
			row[c] = clip(row[c], widths[c])
		}
		total += room - max(0, widths[c]-longest)
	}
	slices.Reverse(left)
	return table, left
}

// clip cuts a cell and shows that it did.
func clip(cell string, width int) string {
	if utf8.RuneCountInString(cell) <= width {
		return cell
	}
	return string([]rune(cell)[:width-1]) + "…"
}

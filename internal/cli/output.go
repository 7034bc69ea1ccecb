package cli

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// printJSON writes v indented.
func (a *app) printJSON(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	_, err = a.Out.Write(append(cleanJSON(b), '\n'))
	return err
}

// printf writes a line of which the arguments are cleaned.
func (a *app) printf(format string, args ...any) {
	for i, arg := range args {
		if s, ok := arg.(string); ok {
			args[i] = clean(s)
		}
	}
	a.outf(format, args...)
}

// say writes a styled line.
func (a *app) say(s style, line string) { a.outf("%s\n", paint(a.colour, s, clean(line))) }

// outf and errf write as they are told: callers clean what needs it. That nobody
// listens any more is no reason to do anything else.
func (a *app) outf(format string, args ...any) { _, _ = fmt.Fprintf(a.Out, format, args...) }

func (a *app) errf(format string, args ...any) { _, _ = fmt.Fprintf(a.Err, format, args...) }

// plural returns "1 thing" or "n things".
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	many := thing + "s"
	if stem, ok := strings.CutSuffix(thing, "y"); ok {
		many = stem + "ies"
	}
	return strconv.Itoa(n) + " " + many
}

// bytesText is a size in at most four digits.
func bytesText(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return strconv.FormatUint(n, 10)
	}
	f, i := float64(n)/1000, 0
	for f >= 999.5 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	if f < 9.95 {
		return strconv.FormatFloat(f, 'f', 1, 64) + units[i:i+1]
	}
	return strconv.FormatFloat(f, 'f', 0, 64) + units[i:i+1]
}

// durationText is a duration in its two largest units.
func durationText(d time.Duration) string {
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

package cli

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// clean returns s with everything that is not printable written as an escape:
// control characters (a terminal would act on them), line ends, marks that change
// the direction of writing, bytes that are no UTF-8.
func clean(s string) string { return escape(s, "") }

// cleanLines is clean for text of several lines: line feeds stay.
func cleanLines(s string) string { return escape(s, "\n") }

func escape(s, keep string) string {
	plain := true
	for _, r := range s {
		if r == utf8.RuneError || (!strconv.IsPrint(r) && !strings.ContainsRune(keep, r)) {
			plain = false
			break
		}
	}
	if plain {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case strconv.IsPrint(r) || strings.ContainsRune(keep, r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
		i += size
	}
	return b.String()
}

// cleanJSON writes the unprintable characters of a JSON text as \u escapes; it
// means the same afterwards. encoding/json itself escapes those below U+0020 only.
func cleanJSON(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		switch {
		case r == '\n' || (strconv.IsPrint(r) && (r != utf8.RuneError || size > 1)):
			out = append(out, text[i:i+size]...)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		i += size
	}
	return out
}

package strict

// MaxNearestBytes is how long the names are, at most, that Nearest compares.
const MaxNearestBytes = 64

// Nearest returns the known name with the least edit distance from name. The distance must be at most 2, and at least
// two less than the known name's length: x does not stand for url. If no name is as near, Nearest returns "". Names
// that are longer than MaxNearestBytes are not near to any. It does not allocate.
func Nearest(name string, known []string) (best string) {
	distance := 3
	for _, candidate := range known {
		shorter, longer := min(len(name), len(candidate)), max(len(name), len(candidate))
		if longer-shorter >= distance || longer > MaxNearestBytes { // the common case, and cheap
			continue
		}
		if d := editDistance(name, candidate); d < distance && d < len(candidate)-1 {
			best, distance = candidate, d
		}
	}
	return best
}

// editDistance returns how many bytes must be inserted, deleted, replaced or swapped with their neighbour to turn a
// into b (the optimal string alignment distance). Neither may be longer than MaxNearestBytes.
func editDistance(a, b string) int {
	var rows [3][MaxNearestBytes + 1]int // row i, in rows[i%3], has in column j the distance of a[:i] and b[:j]
	row := &rows[0]
	for j := range len(b) + 1 {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last := &rows[(i+1)%3], row
		row = &rows[i%3]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}

// Package stats is how measurements are summed up, alike wherever one is printed.
//
// Its law: what it is given stays as it was. It is tested by a table.
package stats

import (
	"cmp"
	"slices"
)

// Median is the middle value, or the mean of the middle two; 0 of none.
func Median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return 0
	}
	v := sorted(values)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// Percentile is the smallest value that more than percent of 100 values are below or equal to, the largest at 100; zero of
// none. It is one of the values, never between two. Sorted values are not sorted again.
func Percentile[T cmp.Ordered](values []T, percent int) T {
	if len(values) == 0 {
		var none T
		return none
	}
	return sorted(values)[min(len(values)*percent/100, len(values)-1)]
}

func sorted[T cmp.Ordered](values []T) []T {
	if slices.IsSorted(values) {
		return values
	}
	return slices.Sorted(slices.Values(values))
}

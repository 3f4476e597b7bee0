// Package recall says what a number of seeds and misses proves: the exact one-sided binomial lower bound of the recall.
//
// The law it keeps: a bound is never above what the numbers prove; it is tested against the reference's table.
package recall

import (
	"fmt"
	"math"
)

// Lower is the lower bound of the recall at confidence 1-alpha, of n seeds drawn at random and m misses: the alpha-quantile of
// Beta(n-m, m+1); without a miss alpha^(1/n). An error where there is no such number.
func Lower(n, m int, alpha float64) (float64, error) {
	if n < 1 || m < 0 || m > n || !(alpha > 0 && alpha < 1) {
		return 0, fmt.Errorf("%d misses of %d seeds at an alpha of %v", m, n, alpha)
	}
	if m == n {
		return 0, nil
	}
	if m == 0 {
		return math.Pow(alpha, 1/float64(n)), nil
	}
	// At the bound, as few misses as these have the probability alpha; it grows with the recall.
	low, high := 0.0, 1.0
	for range 100 {
		if mid := (low + high) / 2; atMost(n, m, 1-mid) < alpha {
			low = mid
		} else {
			high = mid
		}
	}
	return low, nil
}

// Joint is Lower for a statement that must hold for each of so many classes together.
func Joint(n, m int, alpha float64, classes int) (float64, error) {
	return Lower(n, m, alpha/float64(classes))
}

// atMost is the probability of at most m misses of n, each missed with probability q.
func atMost(n, m int, q float64) float64 {
	if q <= 0 {
		return 1
	}
	sum, ln := 0.0, 0.0
	for k := 0; k <= m; k++ {
		if k > 0 {
			ln += math.Log(float64(n-k+1)) - math.Log(float64(k))
		}
		sum += math.Exp(ln + float64(k)*math.Log(q) + float64(n-k)*math.Log1p(-q))
	}
	return sum
}

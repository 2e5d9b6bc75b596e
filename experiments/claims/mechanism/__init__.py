"""Does conditioning explain speed? Interventions, dose–response, mediation, ranking of measures."""
